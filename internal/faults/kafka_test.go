package faults

var kafkaScenarios = []scenario{}
