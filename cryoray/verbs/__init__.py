"""One module for each verb: what the command, the flow and the public function of that name call."""
