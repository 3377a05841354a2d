"""What Keras runs on."""

import keras


def require_tensorflow() -> None:
    """Refuse to work with Keras on another backend.

    Raises:
        RuntimeError: naming the backend, and the frontend for it.
    """
    backend = keras.backend.backend()
    if backend != "tensorflow":
        advice = {
            "torch": "train with a PyTorch loop and horovod_detox.torch instead",
            "jax": "Horovod has no frontend for JAX",
        }.get(backend, f"Horovod has no frontend for {backend}")
        raise RuntimeError(
            f"Keras runs on {backend} here, and this frontend exchanges TensorFlow's gradients: "
            f"set KERAS_BACKEND=tensorflow, or, as you use {backend}: {advice}"
        )
