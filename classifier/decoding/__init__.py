"""From the bytes of an image to grey values between 0 and 1, or a refusal by name."""
