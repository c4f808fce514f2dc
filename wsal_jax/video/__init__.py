"""From a video file to what a backbone eats: decode, flow, clips; and from there to a feature folder."""

from wsal_jax.types import InputError


def require() -> None:
    """Makes sure that the extra `[video]` is there.

    Raises:
      InputError: it is not, or OpenCV is one without the contributed modules.
    """
    install = 'pip install "wsal_jax[video]"'
    try:
        import av  # noqa: F401
        import cv2
    except ImportError as error:
        raise InputError(f"videos need the extra [video] ({error}): {install}") from error
    if not hasattr(cv2, "optflow"):
        what = "OpenCV is installed without its contributed modules (cv2.optflow)"
        raise InputError(f"{what}: uninstall opencv-python and its relatives, then {install}")
