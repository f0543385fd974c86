"""What training needs beside the maths: memory, frozen layers, ranks, random streams, progress."""
