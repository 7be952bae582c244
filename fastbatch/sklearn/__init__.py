"""scikit-learn's MLPClassifier and MLPRegressor on fastbatch's kernels.

Same constructor, methods and attributes as :mod:`sklearn.neural_network` since 1.7, and what was refused there as
keyword-only parameters behind them. docs/migrating.md says what differs.
"""

try:
    from sklearn.utils.validation import validate_data as _validate_data  # noqa: F401  (since 1.6)
except ImportError as error:
    raise type(error)(
        f"fastbatch.sklearn needs scikit-learn >= 1.7: pip install 'fastbatch[sklearn]' ({error})"
    ) from None

from .classifier import MLPClassifier
from .regressor import MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
