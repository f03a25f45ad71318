"""Time and memory of training and scoring, beside other trainers and beside the machine's limit."""
