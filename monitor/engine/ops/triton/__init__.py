"""The ops on CUDA, in Triton; what they compute is defined by the references beside this folder."""
