"""What the commands measure: the demo, answers over documents, kernel times, overhead and quality."""
