"""Task sets: questions with the only answer that counts as right."""
