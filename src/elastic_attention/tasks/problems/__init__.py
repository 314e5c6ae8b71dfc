"""Problems that are solved in words and end in a number: GSM8K and AIME 2024 from files by path."""
