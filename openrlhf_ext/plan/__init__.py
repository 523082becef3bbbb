"""What fits, how many steps there will be, what will really happen: from flags and shapes alone, without torch."""
