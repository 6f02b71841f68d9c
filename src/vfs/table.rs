//! Tables that map node and handle numbers to what stands behind them.
