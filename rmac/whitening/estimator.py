"""What scikit-learn asks of a transformer, so that a `Whitening` works in its pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from rmac._backend import Array
    from rmac.whitening.state import State

_OPTIONS = ("dim", "eps", "kind")


def _options_of(state: State) -> dict[str, Any]:
    return {name: getattr(state, name) for name in _OPTIONS}


class Estimator:
    """The methods of a scikit-learn transformer that `rmac.Whitening` has for it alone."""

    if TYPE_CHECKING:
        _state: State

        def _change(self, changed: Callable[[State], State]) -> None:
            """Replace the state."""

        def fit(self, vectors: Array, y: Any = None) -> Self:
            """Learn from vectors."""

        def apply(self, vectors: Array) -> Array:
            """Whiten vectors."""

    def transform(self, vectors: Array) -> Array:
        """Whiten vectors, as `apply` does.

        Parameters
        ----------
        vectors : array, shape (..., C)
            Vectors, as for `apply`.

        Returns
        -------
        array, shape (..., D)
            The whitened vectors.

        See Also
        --------
        apply : The same.
        """
        return self.apply(vectors)

    def fit_transform(self, vectors: Array, y: Any = None) -> Array:
        """Learn from vectors, and whiten them.

        Parameters
        ----------
        vectors : array, shape (..., C)
            Vectors, as for `fit`.
        y : object, optional
            Ignored. Pipelines pass labels here.

        Returns
        -------
        array, shape (..., D)
            The whitened vectors.

        See Also
        --------
        fit, apply : The two steps.
        """
        return self.fit(vectors, y).apply(vectors)

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """Return the options, as scikit-learn's `clone` and searches ask for them.

        Parameters
        ----------
        deep : bool, default True
            Ignored: no option has options of its own.

        Returns
        -------
        dict
            `dim` as it was asked for, `eps` and `kind`.

        See Also
        --------
        set_params : The opposite.
        """
        return _options_of(self._state)

    def set_params(self, **params: Any) -> Self:
        """Change options. What was learned from vectors stays, and is used with the new options.

        Parameters
        ----------
        **params
            `dim`, `eps` and `kind`, as for `Whitening`.

        Returns
        -------
        Whitening
            This one.

        Raises
        ------
        TypeError
            If an option is of the wrong type.
        ValueError
            If there is no such option, or its value is wrong.

        See Also
        --------
        get_params : The opposite.
        """
        unknown = params.keys() - set(_OPTIONS)
        if unknown:
            raise ValueError(
                f"params: expected {', '.join(_OPTIONS)}, got {', '.join(sorted(unknown))}"
            )
        self._change(
            lambda state: state.with_options(type(self)(**_options_of(state) | params)._state)
        )
        return self

    @property
    def n_features_in_(self) -> int:
        """The number of channels, by the name that scikit-learn gives it; or an AttributeError."""
        channels = self._state.channels
        if channels is None:
            raise AttributeError("n_features_in_ is known when vectors have been learned")
        return channels

    def __sklearn_is_fitted__(self) -> bool:
        return self._state.channels is not None

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="transformer",
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=["float64", "float32"]),
        )
