"""Strategies against forgetting, one module each, named as the config names it.

| module | what it does | source |
|---|---|---|
| `fine_tuning` | nothing | |
| `l2` | holds weights that earlier tasks used where they were | |
| `ewc` | the same, each by its squared gradients | Kirkpatrick 2017, Schwarz 2018 |
| `si` | the same, each by what its path did for the loss | Zenke 2017 |
| `mas` | the same, each by how the outputs depend on it | Aljundi 2018 |
| `lwf` | keeps what the model before said of the new examples | Li & Hoiem 2016 |
| `replay` | trains on remembered examples too | Chaudhry 2019 |
| `der` | the same, and keeps what the model said of them when it met them | Buzzega 2020 |
| `agem` | takes from the gradient what would raise the loss on remembered examples | Chaudhry 2019 |
| `ogd` | takes from the gradient what would change earlier answers | Farajtabar 2020 |
"""
