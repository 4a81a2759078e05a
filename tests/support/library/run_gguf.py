"""Runs GGUF files in llama.cpp, in a process of its own: an assertion of ggml's ends the process that it happens in.

Pairs of a file and questions as JSON on stdin, a list of answers as JSON on stdout. `logprobs`: token ids -> for each
of `predict` greedy tokens, the log-probabilities of the `top` most probable ones. `scores`: token ids -> of each but
the first, its log-probability after those before it. `tokens`: texts -> token ids.
"""

import json
import os
import sys
import urllib.request

import xllamacpp

SERVERS: list[xllamacpp.Server] = []  # whose destructor may wait for ever for a thread that it has not woken


def main(file: str, questions: dict) -> dict:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = file
    parameters.n_ctx, parameters.n_parallel, parameters.verbosity = 512, 1, 0
    parameters.warmup = False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    # As exact as it goes: by default keys and values are rounded to 16 bits.
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(parameters)
    SERVERS.append(server)

    def logprobs(prompt: list[int], predict: int, top: int) -> list[dict[int, float]]:
        options = {"temperature": 0.0, "samplers": ["top_k"], "top_k": 1, "n_predict": predict, "n_probs": top}
        answer = server.handle_completions({"prompt": prompt, **options})
        steps = answer["choices"][0]["logprobs"]["content"]
        return [{token["id"]: token["logprob"] for token in step["top_logprobs"]} for step in steps]

    def score(before: list[int], token: int) -> float:
        for top in (1000, 10**6):  # so few are nearly always enough, and all take their time
            (found,) = logprobs(before, 1, top)
            if token in found:
                return found[token]
        raise ValueError(f"{token} is no token")

    def tokens(text: str) -> list[int]:
        body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["tokens"]

    return {
        "logprobs": [logprobs(**question) for question in questions.get("logprobs", ())],
        "scores": [
            [score(ids[:place], ids[place]) for place in range(1, len(ids))] for ids in questions.get("scores", ())
        ],
        "tokens": [tokens(text) for text in questions.get("tokens", ())],
    }


if __name__ == "__main__":
    print(json.dumps([main(file, questions) for file, questions in json.load(sys.stdin)]), flush=True)
    os._exit(0)  # without the destructors
