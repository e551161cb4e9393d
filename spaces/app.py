"""What a Hugging Face Space starts; at home it is `zoo space`."""

from zoo_space.app import main

if __name__ == "__main__":
    main(host="0.0.0.0")  # noqa: S104 - a Space is reached from outside its container
