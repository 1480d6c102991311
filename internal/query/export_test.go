package query

// Waiting counts those who wait for a read under way.
func (c *Cache) Waiting() (n int) {
	c.flights.mu.Lock()
	defer c.flights.mu.Unlock()
	for _, one := range c.flights.by {
		n += one.waiting
	}
	return n
}

// MaxPause is the longest time for which Redis is left alone, and Calm is for how long it must not have refused.
const (
	MaxPause = maxPause
	Calm     = calm
	Patience = patience
	Rest     = rest
)
