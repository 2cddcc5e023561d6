"""What can be said of sizes that no machine at hand can run: simulations, and arithmetic from measured rates."""
