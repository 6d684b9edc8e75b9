"""What a model is conditioned on: class labels, text, both or nothing, with the null condition of each."""
