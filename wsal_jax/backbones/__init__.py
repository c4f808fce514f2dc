"""Networks that turn frames into features: pure functions over parameters with the names of their published weights."""
