"""What the documentation is built with. No part of the package."""
