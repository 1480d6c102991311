package event

// field is a top-level member that has a meaning to us.
type field uint8

const (
	unknown field = iota
	timestamp
	action
	status
	ttl
	principalID
	organizationID
	targetResourceType
	targetResourceID
	outcomeDescription
	correlationID
	hash
	hashAlgorithm
	eventVersion
	dataClassification
	retentionPolicy
	processingLatency
	archivedAt
	signature
	fieldCount
)

var fieldNames = [fieldCount]string{
	timestamp:          "timestamp",
	action:             "action",
	status:             "status",
	ttl:                "ttl",
	principalID:        "principalId",
	organizationID:     "organizationId",
	targetResourceType: "targetResourceType",
	targetResourceID:   "targetResourceId",
	outcomeDescription: "outcomeDescription",
	correlationID:      "correlationId",
	hash:               "hash",
	hashAlgorithm:      "hashAlgorithm",
	eventVersion:       "eventVersion",
	dataClassification: "dataClassification",
	retentionPolicy:    "retentionPolicy",
	processingLatency:  "processingLatency",
	archivedAt:         "archivedAt",
	signature:          "signature",
}

// maxLengths holds the longest text taken, in Unicode code points; 0 is for fields that other rules bound.
var maxLengths = [fieldCount]int{
	action:             255,
	ttl:                255,
	principalID:        255,
	organizationID:     255,
	targetResourceType: 255,
	targetResourceID:   255,
	outcomeDescription: 10_000,
	correlationID:      255,
	eventVersion:       20,
	retentionPolicy:    50,
}

// String returns the field's key in the event.
func (f field) String() string { return fieldNames[f] }

// fieldOf returns the field with a key, which is matched exactly.
func fieldOf(key []byte) field {
	switch string(key) {
	case "timestamp":
		return timestamp
	case "action":
		return action
	case "status":
		return status
	case "ttl":
		return ttl
	case "principalId":
		return principalID
	case "organizationId":
		return organizationID
	case "targetResourceType":
		return targetResourceType
	case "targetResourceId":
		return targetResourceID
	case "outcomeDescription":
		return outcomeDescription
	case "correlationId":
		return correlationID
	case "hash":
		return hash
	case "hashAlgorithm":
		return hashAlgorithm
	case "eventVersion":
		return eventVersion
	case "dataClassification":
		return dataClassification
	case "retentionPolicy":
		return retentionPolicy
	case "processingLatency":
		return processingLatency
	case "archivedAt":
		return archivedAt
	case "signature":
		return signature
	}
	return unknown
}
