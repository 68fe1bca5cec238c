"""The doctor: it examines anybody's training, names what is wrong with evidence, repairs it, and proves the repair.

`examine` looks (facts, a probe batch, a real short training), lets the rules suspect, and convicts by intervention;
`repair` applies what helps and proves it by paired runs; `watch` takes vitals in anybody's own loop.
"""
