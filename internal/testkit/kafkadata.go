package testkit

import (
	"fmt"
	"path/filepath"
)

// PartitionDir returns the folder of a partition's log segments, for a test that damages them while the broker is down.
func (b *Broker) PartitionDir(topic string, partition int32) string {
	return filepath.Join(b.place.dir, "data", fmt.Sprintf("%s-%d", topic, partition))
}
