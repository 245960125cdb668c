"""What a frozen encoder is worth: features, k-NN and linear heads."""
