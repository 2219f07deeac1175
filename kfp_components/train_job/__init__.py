"""Pre-training over several processes: a Kubeflow Trainer `TrainJob` on a cluster, `torchrun` on one machine."""
