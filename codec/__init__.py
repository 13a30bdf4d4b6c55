"""What both ends must agree on: frame identity, wire formats, entropy coding, SEI, H.264 decode, model bundles."""
