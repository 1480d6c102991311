package query

import (
	"encoding/json"
	"errors"
	"slices"
	"time"
)

// Scope is which organizations' events a caller may see. The zero Scope sees none. Nothing is read without one, and it is part of every cache key.
type Scope struct {
	all           bool
	organizations []string // sorted, each once
}

// Everything is the scope of an operator: all events, also those of no organization.
func Everything() Scope { return Scope{all: true} }

// Organizations is the scope of a caller bound to these.
func Organizations(names ...string) Scope {
	sorted := slices.Clone(names)
	slices.Sort(sorted)
	return Scope{organizations: slices.Compact(sorted)}
}

// All tells whether the scope is everything.
func (s Scope) All() bool { return s.all }

// Filter chooses events by time and by what they hold. From and To are required, so that table partitions are pruned; the rest narrows it down where
// it isn't empty.
type Filter struct {
	From, To                 time.Time // From ≤ timestamp < To
	PrincipalID              string
	OrganizationID           string
	Action                   string
	Status                   string
	Hash                     string
	TargetResourceType       string
	TargetResourceID         string
	CorrelationID            string
	DataClassification       string
	RetentionPolicy          string
	ArchivedFrom, ArchivedTo time.Time // zero: not asked
	Ascending                bool      // oldest first; newest first otherwise
}

// Event is a stored event as it is shown: the producers' names, and the timestamp as it was received, so that whoever has it can compute the hash again.
type Event struct {
	ID                 int64           `json:"id"`
	Timestamp          string          `json:"timestamp"`
	TTL                *string         `json:"ttl"`
	PrincipalID        *string         `json:"principalId"`
	OrganizationID     *string         `json:"organizationId"`
	Action             string          `json:"action"`
	TargetResourceType *string         `json:"targetResourceType"`
	TargetResourceID   *string         `json:"targetResourceId"`
	Status             string          `json:"status"`
	OutcomeDescription *string         `json:"outcomeDescription"`
	Hash               *string         `json:"hash"`
	HashAlgorithm      *string         `json:"hashAlgorithm"`
	EventVersion       *string         `json:"eventVersion"`
	CorrelationID      *string         `json:"correlationId"`
	DataClassification *string         `json:"dataClassification"`
	RetentionPolicy    *string         `json:"retentionPolicy"`
	ProcessingLatency  *int32          `json:"processingLatency"`
	ArchivedAt         *time.Time      `json:"archivedAt"`
	Details            json.RawMessage `json:"details"`
	RecordedAt         time.Time       `json:"recordedAt"`
	LaneID             *int32          `json:"laneId"`
	LaneOffset         *int64          `json:"laneOffset"`
}

// Page is a part of an answer.
type Page struct {
	Events []Event `json:"events"`
	// Next is the cursor of the page that follows, empty at the end.
	Next string `json:"next,omitempty"`
}

// Count is how many events a filter chooses, exact up to a bound.
type Count struct {
	Count int64 `json:"count"`
	Exact bool  `json:"exact"` // false: there are more
}

// ErrNotFound means that there is no such event in the scope: whether it exists outside isn't told.
var ErrNotFound = errors.New("no such event")

// InvalidError is a question that can't be answered as it is. Its text is for whoever asked.
type InvalidError struct{ Parameter, Problem string }

// Error says what is wrong, where.
func (e *InvalidError) Error() string { return e.Parameter + ": " + e.Problem }
