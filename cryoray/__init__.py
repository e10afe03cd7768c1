"""cryoray: which cryo-EM particles and classes to keep, learned from past selections, judged live.

The way of the data, each arrow one verb and one public function::

    source ──ingest──► prepared set ──train──► ensemble ──classify──► verdicts ──validate──► proof

    cryoray.ingest.ingest    cryoray.training.train    cryoray.inference.classify, evaluate
    cryoray.serving.serve    cryoray.simulation.simulate
"""

__version__ = "0.1.0"
