// Package faults is the fault suite: it runs real workers against real brokers and databases, fails each of them at every step and in
// every way the design speaks of, and then asks whether each event that Kafka acknowledged is exactly one row or one quarantined
// record, in order, as it was sent. `make faults` runs it; docs/guarantees.md says what each scenario shows.
//
// A scenario has an environment of its own: a database, a topic, a group, workers as processes, and a load that knows what must become of
// each event because it made the event up. The oracle compares that knowledge with the tables, the log and the group's offsets.
package faults
