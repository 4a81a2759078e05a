"""The lesson: ten questions on the live page. Its texts and its panel are `assets/lesson/`."""
