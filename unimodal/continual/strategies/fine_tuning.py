"""Nothing is done against forgetting: the bound from below."""

from unimodal.continual.strategy import Strategy as Base


class Strategy(Base):
    """Tasks train one after the other, and that is all."""
