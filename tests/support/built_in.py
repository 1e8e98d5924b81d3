"""The built-in catalogue, loaded once: tests do not change it."""

from tocsin.catalogue import Catalogue

CATALOGUE = Catalogue.load()
