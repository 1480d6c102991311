package consumer

// Lane is a lane of this worker, as it is now.
type Lane struct {
	Topic     string
	Partition int32
	Position  int64  // all before it is stored; -1: not known yet
	Halted    string // why it has halted; empty: it hasn't
}

// Lanes are those of this worker, in no order.
func (c *Consumer) Lanes() []Lane {
	var all []Lane
	for _, l := range c.member.Load().ownLanes() {
		l.mu.Lock()
		lane := Lane{Topic: l.id.Topic, Partition: l.id.Partition, Position: l.claim.Next}
		if l.phase == halted {
			lane.Halted = l.why
		}
		l.mu.Unlock()
		all = append(all, lane)
	}
	return all
}
