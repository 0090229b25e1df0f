"""What the sample models were trained to say, without a server: the reference is the model that was committed."""

import unittest

from char_lm import MAX_STEPS, written


class CharLm(unittest.TestCase):
    def test_writes_what_it_wrote_when_it_was_trained(self):
        text = "".join(written("Alice ", 0.6, seed=0, steps=80))
        self.assertEqual(text, "felt the stall as she said the Hatter. 'I was not the moment with the words 'Oh!")

    def test_ends_with_an_answer_without_text(self):
        answers = written("'I don't", 0.6, seed=1)
        self.assertLess(len(answers), MAX_STEPS)
        self.assertEqual(answers[-1], "")
        self.assertNotIn("", answers[:-1])

    def test_chooses_by_temperature_and_seed(self):
        likeliest = written("Alice ", 0.0, seed=1, steps=40)
        self.assertEqual(likeliest, written("Alice ", 0.0, seed=2, steps=40))
        self.assertNotEqual(written("Alice ", 0.6, seed=1, steps=40), written("Alice ", 0.6, seed=2, steps=40))

    def test_reads_the_end_of_a_long_prompt_and_unknown_characters_as_spaces(self):
        prompt = "The Hatter was a little "
        expected = written(prompt * 30, seed=3, steps=40)
        self.assertEqual(written("before" + prompt * 30, seed=3, steps=40), expected)
        self.assertEqual(written(b"The Hatter\xc3was ", seed=3, steps=40), written("The Hatter was ", seed=3, steps=40))


if __name__ == "__main__":
    unittest.main()
