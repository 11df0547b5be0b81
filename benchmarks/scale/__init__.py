"""What a layer costs from 128 to 16,384 GPUs, the law it grows by, and how many workers an answer in 60 s takes."""
