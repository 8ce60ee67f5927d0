"""Writing networks: safetensors, ONNX, OpenVINO, INT8 and packed files."""
