"""What faulty ranks can capture, what each setting tolerates and costs, and which to choose."""
