"""What faulty ranks can capture, what each setting stands and costs, and which to choose."""
