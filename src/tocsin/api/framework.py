"""FastAPI, whose models of the API document are built when the document is made: that takes 30 ms and 1.3 MB."""

from pydantic import BaseModel

BaseModel.model_config["defer_build"] = True
from fastapi import Depends, FastAPI  # noqa: E402

del BaseModel.model_config["defer_build"]

__all__ = ["Depends", "FastAPI"]
