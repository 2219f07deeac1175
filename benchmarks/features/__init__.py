"""Speed of features and data: each script writes its table beside itself."""
