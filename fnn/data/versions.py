"""The versions of the data sets."""

# Pinned, so that a cached data set is found without importing tensorflow-datasets, and so that an
# update of that library does not change the data.
VERSIONS = {
    "mnist_5k": "1.0.0",
    "digits": "1.0.0",
    "mnist": "3.0.1",
    "fashion_mnist": "3.0.1",
    "cifar10": "3.0.2",
}
