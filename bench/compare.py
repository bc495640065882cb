"""Print two results of run.py side by side.

python bench/compare.py BEFORE.json AFTER.json
"""

import argparse
import json


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before")
    parser.add_argument("after")
    options = parser.parse_args()
    before, after = (load(path) for path in (options.before, options.after))
    show_configs(before, after)
    print(
        f"{'shape':>18} {'layout':>6} {'dtype':>8} {'candidate':<22} "
        f"{'x read':>7} {'x read':>7} {'change':>7}"
    )
    old, new = ratios(before), ratios(after)
    for key, ratio in new.items():
        shape, layout, dtype, candidate = key
        was = f"{old[key]:7.2f} {ratio:7.2f} {ratio / old[key]:7.2f}" if key in old else ""
        print(
            f"{'x'.join(map(str, shape)):>18} {layout:>6} {dtype:>8} {candidate:<22} "
            f"{was or f'{chr(8211):>7} {ratio:7.2f}'}"
        )


def load(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def show_configs(before, after):
    """Print what differs between the two installations."""
    settings = [{**run["config"], "workers": run["workers"]} for run in (before, after)]
    for name in settings[1]:
        values = [setting.get(name) for setting in settings]
        if values[0] != values[1]:
            print(f"{name}: {values[0]} -> {values[1]}")


def ratios(run):
    """Return each time as a multiple of the read of the same input in the same run."""
    rows = {
        (tuple(row["shape"]), row["layout"], row["dtype"], row["candidate"]): row["ms"]
        for row in run["results"]
    }
    return {key: ms / rows[(*key[:3], "read")] for key, ms in rows.items() if key[3] != "read"}


if __name__ == "__main__":
    main()
