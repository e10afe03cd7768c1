"""What every page that cryoray serves shares: headers, refusals, and who may send what."""
