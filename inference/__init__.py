"""One Session over OpenVINO, ONNX Runtime, LiteRT and TensorRT."""
