"""What the fuzzer sends and finds: values of parameters, uploaded files, and models in the local cache of the Hub."""
