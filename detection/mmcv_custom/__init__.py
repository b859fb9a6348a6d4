"""What the OpenMMLab task folders share: compatibility, launching, checkpoints, optimizers."""
