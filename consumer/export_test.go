package consumer

import (
	"testing"
	"time"
)

// SetGonePatience shortens how long the brokers must not know a topic, for the time of a test. No consumer may run yet.
func SetGonePatience(t *testing.T, d time.Duration) {
	was := gonePatience
	gonePatience = d
	t.Cleanup(func() { gonePatience = was })
}
