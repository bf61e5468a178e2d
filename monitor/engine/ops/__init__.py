"""The fused op of a tapped layer (``tap``) and the gate (``gate``): one reference each in torch, Triton beside it."""
