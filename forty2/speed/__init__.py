"""Time and memory of training and scoring, compared with other trainers and the machine's limit."""
