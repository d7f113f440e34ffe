"""One thread: the models here are so small that four on a busy machine take fifty times as long."""

import torch

torch.set_num_threads(1)
