# unittest, because the environment of builds has no pytest
# ruff: noqa: PT009, PT027

import pathlib
import subprocess
import sys
import tempfile
import unittest

from tally_report import Row, parse, render


class Parsing(unittest.TestCase):
    def test_a_line_is_a_count_a_tab_and_a_word(self):
        self.assertEqual(list(parse(["3\tthe\n", "1\tcat\n"])), [Row("the", 3), Row("cat", 1)])

    def test_a_wrong_line_is_named(self):
        with self.assertRaisesRegex(ValueError, "line 2 .*'three the'"):
            list(parse(["3\tthe", "three the"]))


class Rendering(unittest.TestCase):
    def test_shares_are_of_the_words_shown(self):
        table = render([Row("the", 3), Row("cat", 1)])
        self.assertIn("| the | 3 | 75.0% |", table)
        self.assertIn("| cat | 1 | 25.0% |", table)

    def test_no_words_is_a_sentence(self):
        self.assertEqual(render([]), "No words.\n")


class TheProgram(unittest.TestCase):
    """Runs the real tally, which another package built: it is on the PATH."""

    def test_it_reads_a_file_through_tally(self):
        with tempfile.TemporaryDirectory() as directory:
            text = pathlib.Path(directory, "text")
            text.write_text("a rose is a rose is a rose\n")
            ran = subprocess.run(
                [sys.executable, "-m", "tally_report", str(text)], stdout=subprocess.PIPE, text=True, check=True
            )
        self.assertIn("| rose | 3 | 37.5% |", ran.stdout)


if __name__ == "__main__":
    unittest.main()
