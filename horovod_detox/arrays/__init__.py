"""Arrays of NumPy, torch and TensorFlow behind one namespace, and the work on their columns."""
